"""The target side: directories, final names, owners and modes."""
