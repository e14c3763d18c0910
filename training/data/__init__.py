"""From pictures on disk to batches of quadruplets.

`importers/` bring every known layout to one pair index (`index`), `validation` lists what is wrong with it, `splits`
holds pairs and tasks out, `drawing` chooses quadruplets, `quadruplets` reads their pictures (`pictures`, `buckets`)
for a torch DataLoader, `reference` does the same for the reference's triplets, `cache` keeps encoder outputs.
"""
