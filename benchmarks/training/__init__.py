"""One Lightning module, one trainer, resume, and the pool of workers."""
