"""A device's update on its way to the server: transforms, shares, the average."""
