"""The demo: recipes on the needle task, what they keep of one prompt, and a page of both."""
