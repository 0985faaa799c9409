"""Why a model answered as it did, task by task: attributions, checks by intervention, attention, reports."""
