//! Random changes of training pictures: a pure function of (seed, epoch, index).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::colour;
use super::picture::Picture;
use super::resize::{Filter, resize};
use crate::error::DataError;
use crate::order::{Draws, Stream};

/// Random changes of training pictures, in the order of these keys. The held-out part is never changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Augment {
    /// A random part of the picture, resized to `size`, in place of its middle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resized_crop: Option<ResizedCrop>,
    /// Black pixels that are put on every side before a random part of the size before is taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub crop_padding: Option<usize>,
    /// Whether half of the pictures have left and right exchanged.
    #[serde(default)]
    pub flip: bool,
    /// RandAugment (Cubuk et al. 2019).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub randaugment: Option<RandAugment>,
    /// Random brightness, contrast, saturation and hue.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jitter: Option<Jitter>,
    /// Mixes a picture with another of its batch: every pixel, and the classes, as share and rest (Zhang et al. 2017).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mixup: Option<Mixing>,
    /// Puts a box of another picture of the batch into a picture; the classes have the shares of the area (Yun et al. 2019).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cutmix: Option<Mixing>,
}

/// How much of a picture is left: a share drawn from the distribution Beta(alpha, alpha).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Mixing {
    /// Above 0. 1 draws all shares alike; less prefers those near 0 and 1.
    pub alpha: f64,
}

/// A random part of a picture (Szegedy et al. 2014).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ResizedCrop {
    /// Least and greatest share of the area.
    #[serde(default = "default_scale")]
    pub scale: [f64; 2],
    /// Least and greatest width over height.
    #[serde(default = "default_ratio")]
    pub ratio: [f64; 2],
}

fn default_scale() -> [f64; 2] {
    [0.08, 1.0]
}

fn default_ratio() -> [f64; 2] {
    [3.0 / 4.0, 4.0 / 3.0]
}

/// How far colours move: brightness, contrast and saturation are multiplied by 1 - x to 1 + x, the hue turns by at most `hue`
/// of the circle.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Jitter {
    /// From 0 to 1.
    #[serde(default)]
    pub brightness: f64,
    /// From 0 to 1.
    #[serde(default)]
    pub contrast: f64,
    /// From 0 to 1.
    #[serde(default)]
    pub saturation: f64,
    /// From 0 to 0.5.
    #[serde(default)]
    pub hue: f64,
}

/// So many changes, each drawn from: none, shear and shift along both axes, rotation, brightness, saturation, contrast,
/// posterize, solarize, autocontrast, equalize.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RandAugment {
    /// Changes of each picture.
    #[serde(default = "two")]
    pub count: usize,
    /// How strong they are, from 0 to 30.
    #[serde(default = "nine")]
    pub magnitude: f64,
}

/// Shares are all but one half beyond it.
const MOST_ALPHA: f64 = 1000.0;

fn two() -> usize {
    2
}

fn nine() -> f64 {
    9.0
}

impl Augment {
    /// Refuses values out of range.
    pub(crate) fn check(&self, channels: usize) -> Result<(), DataError> {
        let wrong = |key: &str, what: String, hint: &str| {
            Err(DataError::setting(format!("data.images.augment.{key}"), what, hint))
        };
        if let Some(ResizedCrop { scale, ratio }) = &self.resized_crop {
            let rising = |[low, high]: [f64; 2], most: f64| 0.0 < low && low <= high && high <= most;
            if !rising(*scale, 1.0) || !rising(*ratio, 100.0) {
                let what = format!("scale = {scale:?} and ratio = {ratio:?} are not rising pairs above 0");
                return wrong("resized_crop", what, "resized_crop = { scale = [0.35, 1.0], ratio = [0.75, 1.33] }");
            }
        }
        if let Some(padding @ 1025..) = self.crop_padding {
            return wrong(
                "crop_padding",
                format!("crop_padding = {padding}: at most 1024"),
                "for 32 pixels crop_padding = 4",
            );
        }
        if let Some(Jitter { brightness, contrast, saturation, hue }) = self.jitter {
            let shares = [brightness, contrast, saturation].iter().all(|x| (0.0..=1.0).contains(x));
            if !shares || !(0.0..=0.5).contains(&hue) {
                let given =
                    format!("brightness = {brightness}, contrast = {contrast}, saturation = {saturation}, hue = {hue}");
                let what = format!("{given}: each is 0 to 1, and the hue 0 to 0.5");
                return wrong(
                    "jitter",
                    what,
                    "jitter = { brightness = 0.4, contrast = 0.4, saturation = 0.4, hue = 0.1 }",
                );
            }
            if channels != 3 && (saturation > 0.0 || hue > 0.0) {
                let what = format!("saturation and hue need 3 channels, the images have {channels}");
                return wrong("jitter", what, "jitter = { brightness = 0.4, contrast = 0.4 }");
            }
        }
        if let Some(RandAugment { count, magnitude }) = self.randaugment
            && (!(0.0..=30.0).contains(&magnitude) || count > 16)
        {
            let what = format!("count = {count} and magnitude = {magnitude}: at most 16 changes, magnitude 0 to 30");
            return wrong("randaugment", what, "randaugment = { count = 2, magnitude = 9 }");
        }
        for (key, mixing, usual) in [("mixup", self.mixup, 0.2), ("cutmix", self.cutmix, 1.0)] {
            if let Some(Mixing { alpha }) = mixing
                && !(alpha > 0.0 && alpha <= MOST_ALPHA)
            {
                let what = format!("alpha = {alpha} is out of range: above 0, and at most {MOST_ALPHA}");
                return wrong(key, what, &format!("{key} = {{ alpha = {usual} }}"));
            }
        }
        Ok(())
    }

    /// Whether pictures of a batch are mixed.
    pub(crate) fn mixes(&self) -> bool {
        self.mixup.is_some() || self.cutmix.is_some()
    }

    /// The picture of a training sample. `whole` is as the file has it; `middle` makes what the model would see of it
    /// without random changes.
    pub(crate) fn apply(
        &self,
        whole: &Picture,
        middle: impl FnOnce(&Picture) -> Picture,
        [height, width]: [usize; 2],
        filter: Filter,
        sample: (u64, u64, u64),
    ) -> Picture {
        let mut draws = Draws::new(Stream::Augment, sample);
        let mut picture = match &self.resized_crop {
            Some(crop) => resized_crop(whole, crop, [height, width], filter, &mut draws),
            None => middle(whole),
        };
        if let Some(padding) = self.crop_padding {
            let [top, left] = [(); 2].map(|()| draws.up_to(2 * padding) as isize - padding as isize);
            picture = picture.crop(top, left, height, width);
        }
        if self.flip && draws.unit() < 0.5 {
            picture = picture.flipped();
        }
        if let Some(RandAugment { count, magnitude }) = self.randaugment {
            for _ in 0..count {
                picture = one_of_randaugment(picture, magnitude / 30.0, &mut draws);
            }
        }
        if let Some(jitter) = &self.jitter {
            jitter_colours(&mut picture, jitter, &mut draws);
        }
        picture
    }
}

/// Ten tries as torchvision, then the middle of the picture in a ratio that is allowed.
fn resized_crop(
    picture: &Picture,
    crop: &ResizedCrop,
    [height, width]: [usize; 2],
    filter: Filter,
    draws: &mut Draws,
) -> Picture {
    let area = (picture.height * picture.width) as f64;
    let [low, high] = crop.ratio;
    for _ in 0..10 {
        let wanted = area * draws.between(crop.scale[0], crop.scale[1]);
        let ratio = draws.between(low.ln(), high.ln()).exp();
        let (w, h) = ((wanted * ratio).sqrt().round() as usize, (wanted / ratio).sqrt().round() as usize);
        if (1..=picture.width).contains(&w) && (1..=picture.height).contains(&h) {
            let top = draws.up_to(picture.height - h);
            let left = draws.up_to(picture.width - w);
            return resize(&picture.crop(top as isize, left as isize, h, w), height, width, filter);
        }
    }
    let (full_h, full_w) = (picture.height as f64, picture.width as f64);
    let w = (full_h * high).min(full_w).round().max(1.0) as usize;
    let h = (full_w / low).min(full_h).round().max(1.0) as usize;
    let (top, left) = ((picture.height - h) / 2, (picture.width - w) / 2);
    resize(&picture.crop(top as isize, left as isize, h, w), height, width, filter)
}

fn jitter_colours(picture: &mut Picture, jitter: &Jitter, draws: &mut Draws) {
    let Jitter { brightness, contrast, saturation, hue } = *jitter;
    let mut order = [0, 1, 2, 3];
    for last in (1..order.len()).rev() {
        order.swap(last, draws.up_to(last));
    }
    for change in order {
        match change {
            0 if brightness > 0.0 => colour::brightness(picture, draws.between(1.0 - brightness, 1.0 + brightness)),
            1 if contrast > 0.0 => colour::contrast(picture, draws.between(1.0 - contrast, 1.0 + contrast)),
            2 if saturation > 0.0 => colour::saturation(picture, draws.between(1.0 - saturation, 1.0 + saturation)),
            3 if hue > 0.0 => colour::hue(picture, draws.between(-hue, hue)),
            _ => {}
        }
    }
}

/// One change; `strength` is from 0 to 1, with torchvision's ranges.
fn one_of_randaugment(mut picture: Picture, strength: f64, draws: &mut Draws) -> Picture {
    let sign = if draws.bits() & 1 == 0 { 1.0 } else { -1.0 };
    let (shear, amount) = (sign * 0.3 * strength, 1.0 + sign * 0.9 * strength);
    let shift = |size: usize| (sign * 150.0 / 331.0 * size as f64 * strength).trunc();
    match draws.up_to(12) {
        0 => {}
        1 => return colour::affine(&picture, [1.0, shear, 0.0, 0.0, 1.0, 0.0]),
        2 => return colour::affine(&picture, [1.0, 0.0, 0.0, shear, 1.0, 0.0]),
        3 => return colour::affine(&picture, [1.0, 0.0, shift(picture.width), 0.0, 1.0, 0.0]),
        4 => return colour::affine(&picture, [1.0, 0.0, 0.0, 0.0, 1.0, shift(picture.height)]),
        5 => {
            let (sin, cos) = (sign * 30.0 * strength).to_radians().sin_cos();
            return colour::affine(&picture, [cos, -sin, 0.0, sin, cos, 0.0]);
        }
        6 => colour::brightness(&mut picture, amount),
        7 => colour::saturation(&mut picture, amount),
        8 => colour::contrast(&mut picture, amount),
        9 => colour::posterize(&mut picture, 8 - (4.0 * strength).round() as u32),
        10 => colour::solarize(&mut picture, 255.0 * (1.0 - strength)),
        11 => colour::autocontrast(&mut picture),
        _ => colour::equalize(&mut picture),
    }
    picture
}
