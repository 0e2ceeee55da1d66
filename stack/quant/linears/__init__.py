"""The linears this package computes itself."""
