"""From images on disk to batches of quadruplets.

`importers/` bring every known layout to one pair index (`index`), `checks` lists what is wrong with it, `splits` holds
pairs and tasks out, `pairing` chooses quadruplets, `quadruplets` reads their images (`images`, `buckets`) for a torch
DataLoader, `tensor_cache` keeps encoder outputs.
"""
