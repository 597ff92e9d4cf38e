"""Names and arrays on disk. Knows no model class."""
