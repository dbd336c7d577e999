"""Multi-module GRPO (arXiv 2508.04660), in the order it runs.

rollout    which examples a step takes, and their runs
group      runs -> groups of calls by (example, module, invocation index), with each call's reward
advantage  rewards of one group -> advantages
loss       log-probabilities, advantages -> one number
record     what a step sampled, kept for people to read
update     one optimizer step over a packed forest
checkpoint adapter, optimizer and step on disk
train      the loop
"""
