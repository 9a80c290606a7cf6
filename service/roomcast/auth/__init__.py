"""From a token to what its bearer may do: keys, signatures, claims."""
