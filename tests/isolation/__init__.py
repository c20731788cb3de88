"""Isolation: scripted interleavings (Hermitage and more) and random ones checked afterwards."""
