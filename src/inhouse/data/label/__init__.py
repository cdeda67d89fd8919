"""Labels: by rules, by a model behind an endpoint, by people; and which given labels are probably wrong."""
