"""One module per layout of image files; each finds candidates, `building` makes records of them.

`folders` (a folder per transformation), `strips` (before|after side by side), `relation252k`, `hf_datasets`
(parquet, imagefolder, hub), `webdataset` (tar shards), and `reference` (`control/` + `target/` analogies).
"""
