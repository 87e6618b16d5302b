"""What Balanced SAM costs beyond its two passes, beside others."""
