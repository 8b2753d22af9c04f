"""Models in fewer bits: integers and their arithmetic, the modules that compute with them, schemes (one file each)."""
