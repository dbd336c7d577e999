"""The prefix trie: sequences that share a beginning are computed once, in decoding and in training.

pack       sequences -> a forest of distinct prefixes, packed into one row of tokens
attention  a transformers attention function in which a token sees its ancestors alone
cache      keys and values of a growing forest, for decoding
decode     continuous batching over that cache
logprobs   log-probabilities of sampled tokens over a packed forest, with gradient
"""
