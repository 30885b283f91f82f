//! The instruction sets the kernels are written for, and [`Cpu`]: the context that every kernel is given.

use crate::pool::Pool;
use crate::rows::Codes;
use std::fmt;
use std::sync::OnceLock;

/// The environment variable that forces an instruction set.
const VARIABLE: &str = "TENON_ISA";

/// An instruction set. Each includes the ones before it, and all give the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, for any processor.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL, and BMI2, which every such processor has.
    Avx512,
    /// [`Isa::Avx512`] with the BF16 dot product.
    Avx512Bf16,
}

/// `TENON_ISA`, or a program, asked for an instruction set that is unknown or that this processor lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IsaError(String);

impl fmt::Display for IsaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for IsaError {}

impl Isa {
    /// Every instruction set, the least first.
    pub const ALL: [Isa; 4] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16];

    /// The name that `TENON_ISA` takes.
    pub fn name(self) -> &'static str {
        match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether this processor has it.
    pub fn is_supported(self) -> bool {
        match self {
            Isa::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => {
                Isa::Avx2.is_supported()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512dq")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("bmi2")
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Bf16 => Isa::Avx512.is_supported() && is_x86_feature_detected!("avx512bf16"),
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 | Isa::Avx512Bf16 => false,
        }
    }

    /// What this processor has, the least first.
    pub fn supported() -> Vec<Isa> {
        Isa::ALL.into_iter().filter(|isa| isa.is_supported()).collect()
    }

    /// The best instruction set of this processor, or the one that `TENON_ISA` names. Read once per process.
    ///
    /// # Errors
    /// The variable names no instruction set, or one that this processor lacks.
    pub fn detect() -> Result<Isa, IsaError> {
        static DETECTED: OnceLock<Result<Isa, IsaError>> = OnceLock::new();
        DETECTED
            .get_or_init(|| Isa::choose(std::env::var_os(VARIABLE).map(|v| v.to_string_lossy().into_owned())))
            .clone()
    }

    /// [`Isa::detect`] for a given value of the variable.
    fn choose(forced: Option<String>) -> Result<Isa, IsaError> {
        let supported = Isa::supported();
        let names = |set: &[Isa]| set.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ");
        let Some(forced) = forced.filter(|v| !v.is_empty()) else {
            return Ok(supported.into_iter().next_back().unwrap_or(Isa::Portable));
        };
        let Some(isa) = Isa::ALL.into_iter().find(|isa| isa.name() == forced) else {
            return Err(IsaError(format!(
                "{VARIABLE}: unknown instruction set `{forced}`; this processor has {}. Unset {VARIABLE} to use the best",
                names(&supported)
            )));
        };
        isa.check().map_err(|e| IsaError(format!("{VARIABLE}={forced}: {e}. Unset {VARIABLE} to use the best")))?;
        Ok(isa)
    }

    /// An error unless this processor has it.
    fn check(self) -> Result<(), IsaError> {
        if self.is_supported() {
            return Ok(());
        }
        let names: Vec<_> = Isa::supported().into_iter().map(Isa::name).collect();
        Err(IsaError(format!("this processor lacks {}; it has {}", self.name(), names.join(", "))))
    }
}

/// What a kernel runs on: the workers and an instruction set that the processor is known to have.
pub struct Cpu {
    /// The worker threads.
    pub pool: Pool,
    /// Private: a value of `Cpu` is the proof of support that the kernels rely on.
    isa: Isa,
    /// The machine code of row programs.
    pub(crate) codes: Codes,
}

impl Cpu {
    /// `threads` threads with the instruction set of [`Isa::detect`].
    ///
    /// # Errors
    /// As [`Isa::detect`].
    pub fn new(threads: usize) -> Result<Cpu, IsaError> {
        Cpu::with_isa(threads, Isa::detect()?)
    }

    /// `threads` threads with the given instruction set.
    ///
    /// # Errors
    /// This processor lacks it.
    pub fn with_isa(threads: usize, isa: Isa) -> Result<Cpu, IsaError> {
        isa.check()?;
        Ok(Cpu { pool: Pool::new(threads), isa, codes: Codes::default() })
    }

    /// The instruction set; the processor has it.
    pub fn isa(&self) -> Isa {
        self.isa
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_variable_chooses_and_errors_name_the_choices() {
        let best = Isa::supported().into_iter().next_back();
        assert_eq!(Isa::choose(None).ok(), best);
        assert_eq!(Isa::choose(Some(String::new())).ok(), best);
        for isa in Isa::ALL {
            match Isa::choose(Some(isa.name().to_string())) {
                Ok(chosen) => assert!(chosen == isa && isa.is_supported()),
                Err(e) => {
                    assert!(!isa.is_supported());
                    assert!(
                        e.to_string().contains("this processor lacks") && e.to_string().contains("portable"),
                        "{e}"
                    );
                    assert!(Cpu::with_isa(1, isa).is_err());
                }
            }
        }
        let error = Isa::choose(Some("avx3".into())).map_err(|e| e.to_string());
        assert!(error.as_ref().is_err_and(|e| e.contains("`avx3`") && e.contains("portable")), "{error:?}");
    }
}
