"""What a trained learner holds, in numbers and words: from its tensors, and from what it hands to the frozen towers."""
