"""RULER: 13 synthetic tasks of any length and for any tokenizer.

After NVIDIA/RULER (Apache-2.0; Hsieh et al., 2024): the same templates, generators, random numbers
and rules of length. With the same tokenizer, words and essays, a seed gives RULER's own texts,
except where a sentence ends: RULER splits essays with NLTK's trained model, which is no package.
Here a sentence ends at white space behind a full stop, a question mark or an exclamation mark.
"""
