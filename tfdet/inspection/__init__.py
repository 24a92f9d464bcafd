"""Which samples every algorithm calls positive, negative or ignored on one's own images: `python -m tfdet inspect`."""
