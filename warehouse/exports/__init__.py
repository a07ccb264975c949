"""Rows to the outside: other trainers' preference formats, parquet and Hugging Face data sets."""
