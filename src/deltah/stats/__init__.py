"""Statistics with intervals clustered by question, and the pilot study: do signals of entropy tell good calls?"""
