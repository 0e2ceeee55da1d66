"""Wirings derived from a small instance of a denoiser's class and one traced call of it."""
