"""Methods, one file each, found by file name; each defines ``METHOD``."""
