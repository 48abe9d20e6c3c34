"""Turns image files into pictures of 8 or 16 bits. Knows neither data sets nor devices."""
