"""BibTeX of the paper."""

PSKD = """@inproceedings{kim2021pskd,
  author = {Kim, Kyungyul and Ji, ByeongMoon and Yoon, Doyoung and Hwang, Sangheum},
  title = {Self-Knowledge Distillation with Progressive Refinement of Targets},
  booktitle = {Proceedings of the IEEE/CVF International Conference on Computer Vision},
  year = {2021}
}"""
