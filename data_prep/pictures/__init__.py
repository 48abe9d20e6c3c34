"""Turns the content of image files into 8-bit pictures. Knows neither data sets nor devices."""
