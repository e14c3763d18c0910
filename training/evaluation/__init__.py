"""The paper's evaluation, behind `python -m training.evaluate` (arXiv 2602.15727, Section 4).

generate: a test set and the images of every method (`sets`, `test_set`, `methods`); judge: metrics, ratings and
comparisons (`metrics`, `lpips`, `questions`, `judge`); aggregate: table, plot and sheets (`aggregation`, `report`).
"""
