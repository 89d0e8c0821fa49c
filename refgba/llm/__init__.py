"""Language models, by torch and transformers (`pip install 'refgba[llm]'`); imported by nothing else.

records.py     what a harvest writes, read back without torch
"""
