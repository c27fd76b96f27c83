"""The version of Shoal, in a module that anything may import."""

VERSION = "0.1.0"
