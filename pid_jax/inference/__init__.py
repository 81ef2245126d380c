"""From texts to answers: request, plan, prefill, decode, results, run by an executor."""
