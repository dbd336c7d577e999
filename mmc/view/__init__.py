"""The viewer: run folders as web pages on this machine. It reads, and never writes.

lines   JSON lines that grow meanwhile
runs    run folders: what is there, how far it is
search  what a prompt search has tried, from its result or its journal
groups  the groups of a training, and why a call was not trained on
app     the pages
server  one address on 127.0.0.1
"""
