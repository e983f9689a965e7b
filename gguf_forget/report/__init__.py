"""What a run found, for people and programs: one document, from which every other form is made."""
