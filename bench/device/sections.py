"""All sections in the order in which they run, the most important first."""

from bench.device import bandwidth, batches, codecs, fused, training, tune
from bench.device.section import Section

SECTIONS = (
    Section("codecs", "Codecs against the CPU, bit for bit", (), 90, 30, codecs.cases, jobs=15),
    Section("steps", "Training steps against plain", (), 180, 90, training.step_cases, jobs=15),
    Section("copy", "Copies", ("seconds_s", "gb_per_s"), 20, 10, bandwidth.copy_cases),
    Section(
        "bandwidth", "Encodes and decodes", ("seconds_s", "gb_per_s", "of_copy"), 75, 20, bandwidth.sweep_cases
    ),
    Section("tune", "Other launches and forms", ("seconds_s", "gb_per_s", "of_copy"), 75, 20, tune.cases),
    Section("fused", "Fused with GELU", ("seconds_s", "plain_s", "ratio", "counted_ratio"), 60, 20, fused.cases),
    Section(
        "train", "Training steps",
        ("step_s", "step_s/plain", "kernels_s", "kernels_s/plain", "launches", "total_peak_bytes",
         "total_peak_bytes/plain", "peak_bytes", "predicted", "reserved_bytes"),
        360, 300, training.train_cases, isolated=True, jobs=15,
    ),
    Section("families", "Training steps of transformers' models", (), 240, 90, training.family_cases, jobs=15),
    Section(
        "batches", "Largest batch", ("batch", "failed_batch", "used_bytes", "batch/plain"), 300, 250, batches.cases,
        isolated=True, jobs=3,
    ),
)  # fmt: skip
