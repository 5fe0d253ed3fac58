"""What people own from the CoOp family, read into the forms used here: trained prompts, results, few-shot lists."""
