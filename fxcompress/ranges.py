"""Running ranges of attention operands in checkpoints (Mesa, Pan et al., 2021).

    compiled = torch.compile(model, backend="actcomp", options={"preset": "mesa", "stats": "ema"})
    torch.save({"model": model.state_dict(), "ranges": ranges.state_dict()}, path)
    ...
    ranges.load_state_dict(torch.load(path)["ranges"])

Ranges are kept by the path of the module and the name of the tensor, not in the model, whose `state_dict` has the keys
that it has without us. Models of one process that have equal paths share them.
"""

from fxcompress.codecs.running.live import clear, load_state_dict, state_dict

__all__ = ["clear", "load_state_dict", "state_dict"]
