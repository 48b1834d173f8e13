"""Plans shown to people: tables, one page, and exports for other viewers."""
