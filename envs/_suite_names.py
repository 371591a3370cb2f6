"""Prefixes of suites that are made of variants; apart, so that naming them loads nothing."""

PLUS = "libero_plus"
STYLE = "libero_style"
