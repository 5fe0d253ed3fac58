"""What people bring from the CoOp family, converted to our formats: trained prompts, results, few-shot lists."""
