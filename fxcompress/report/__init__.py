"""Plans shown to people: tables, and later pages and timelines."""
