//! Presets: values for one network or purpose, and cards about networks where this miner cannot earn.

/// What a preset is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PresetKind {
    /// Values to run with.
    Runs,
    /// Values of a network that is gone: for snapshots, local chains and test chains, never the main network.
    Historic,
    /// No values at all: says why nothing can be earned there.
    Card,
}

/// A named set of values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preset {
    /// The name, as `--preset` takes it.
    pub name: &'static str,
    /// What it is.
    pub kind: PresetKind,
    /// One sentence about it.
    pub summary: &'static str,
    /// What an operator should know, in full.
    pub about: &'static str,
    /// Settings and their values.
    pub values: &'static [(&'static str, &'static str)],
}

/// Every preset.
pub static PRESETS: &[Preset] = &[
    Preset {
        name: "local",
        kind: PresetKind::Runs,
        summary: "trying things out on one machine: every caller that proves a key is served, on loopback",
        about: "Listens on loopback only and serves everybody there who signs requests, so that validators and clients \
                of your own can be tried without a chain. Nothing is earned.",
        values: &[("network", "none"), ("policy.allow", "any")],
    },
    Preset {
        name: "classic-sn1",
        kind: PresetKind::Historic,
        summary: "subnet 1 as it was from June to September 2023: openvalidators 1.x, bittensor 5 over gRPC",
        about: "The rules of opentensor/validators (openvalidators 1.x): ten seconds for a reply, 50 miners asked at once, \
                diversity as a gate. No validator of the main network has spoken this since October 2023; use it with a \
                snapshot, a local chain or a subnet of your own.",
        values: &[
            ("netuid", "1"),
            ("uniqueness.profile", "openvalidators-1.2"),
            ("pipeline.cap", "10s"),
            ("policy.require_permit", "true"),
            ("policy.rate", "60"),
        ],
    },
    Preset {
        name: "classic-sn11",
        kind: PresetKind::Historic,
        summary: "subnet 11 as it was from October 2023 to mid 2024: text-prompting 2.x, bittensor 6 over HTTP",
        about: "The rules of opentensor/text-prompting 2.x, the second text-prompting network, whose clients were of \
                bittensor 6 (so `legacy_http` is on). The main network's subnet 11 was handed to others in 2024; use it with a snapshot, a \
                local chain or a subnet of your own.",
        values: &[
            ("netuid", "11"),
            ("uniqueness.profile", "text-prompting-2.1"),
            ("transports.legacy_http", "true"),
            ("pipeline.cap", "10s"),
            ("policy.require_permit", "true"),
            ("policy.rate", "60"),
        ],
    },
    Preset {
        name: "custom",
        kind: PresetKind::Runs,
        summary: "nothing set: every value is your own",
        about: "Sets nothing. For a subnet of your own, or any network whose rules you know.",
        values: &[],
    },
    Preset {
        name: "sn1-apex",
        kind: PresetKind::Card,
        summary: "the main network's subnet 1 today: nothing can be earned there with this protocol",
        about: "Subnet 1 of the main network is Apex, and since December 2025 Apex 4: competitions in which the winner \
                takes all. Work is handed in with its own tool (`apex submit`) for a fee per submission; validators send no text prompts \
                to miners, so a miner that answers prompts is never asked and earns nothing. Text prompting ended there step by step: tasks with references in \
                January 2024, streaming in April 2024, Epistula in November 2024, a generator and a discriminator in August 2025. \
                To practise the old rules: --preset classic-sn1.",
        values: &[],
    },
    Preset {
        name: "sn11-trajectory",
        kind: PresetKind::Card,
        summary: "the main network's subnet 11 today: nothing can be earned there with this protocol",
        about: "Subnet 11 of the main network is TrajectoryRL: miners submit packs of agent policies, for a fee of 50 alpha per \
                submission. No prompts are sent to miners, so a miner that answers prompts is never asked and earns nothing. It had left \
                text prompting in mid 2024 (Dippy took it over, with models submitted instead of served). \
                To practise the old rules: --preset classic-sn11.",
        values: &[],
    },
];

/// Returns the preset of a name.
#[must_use]
pub fn preset(name: &str) -> Option<&'static Preset> {
    PRESETS.iter().find(|p| p.name == name)
}
