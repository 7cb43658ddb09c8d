"""One file's way: admission, claim, copy or link, row, removal of the claim."""
