"""The paper's user study: questionnaires, their pages, and the analysis of answers."""
