"""The compiled program over HTTP: its own endpoint, and OpenAI's.

server     listens, loads, stops in good order
app        the routes
gate       what every request passes: token, size, whether anybody still waits for the answer
desk       how many requests are worked on at a time, for how long, and until when
worker     the program and its engines, in a thread of their own
metered    how many tokens a request may take
chat       OpenAI's requests and answers in our words
schema     the program's inputs and outputs, typed
problem    errors as RFC 9457 says
measure    numbers for Prometheus
"""
