"""FastCache's parts: its test, its maps, its tokens."""
