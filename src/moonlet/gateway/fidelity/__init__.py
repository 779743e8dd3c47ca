"""Does an endpoint do what it should? Checks over raw HTTP, and the scores of vendors' verifiers.

check.py       what a check and a rule are
endpoint.py    how they ask; client.py, sse.py, answers.py: what comes back
checks/        the checks; stream_rules.py, answer_rules.py: what holds for every answer
suite.py       runs them
samples.py     requests of a vendor's verifier; replay.py runs and scores.py compares them
"""
