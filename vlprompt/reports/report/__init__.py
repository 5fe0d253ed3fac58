"""`vlprompt report`: one page of all results that needs no network."""
