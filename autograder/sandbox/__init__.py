"""The untrusted side: the only code that runs beside a student's answer.

Started by path (`python -I …/sandbox/zygote.py FD`) from a folder that may be bound alone, so it imports
the standard library, numpy, torch and safetensors, and nothing of ours. `zygote` forks, `runner` runs
cells and answers calls, `wire` carries plain data, `watch` refuses torch operations, `stub` stands in
for the student's API. Nothing here knows an expected value, a seed or a reference, and whatever it says
is only a claim: the judge decides.
"""
