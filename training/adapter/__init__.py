"""The basis on the base's Linears: the adapted Linear, what is trained, router health."""
