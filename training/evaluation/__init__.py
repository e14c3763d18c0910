"""The paper's evaluation: `python -m training.evaluate`, in three stages that each go on where they stopped.

generate: a test set and every method's pictures; judge: numbers, ratings and comparisons per picture;
aggregate: tables, plot and picture sheets. Records are JSONL files in one folder (`folder`), one subject per module.
Source: arXiv 2602.15727, Section 4.
"""
